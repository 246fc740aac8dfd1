"""From a batch to an update: targets, losses, optimizer, step."""
