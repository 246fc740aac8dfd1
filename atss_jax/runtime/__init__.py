"""Devices, compiled programs, checkpoints, metric files: what a run stands on."""
