"""`--mode=selftest`: is the arithmetic of this machine right?

`report` runs and prints the checks of `arithmetic` (sums, boxes, assignment, NMS) and of `network`
(a small detector with known numbers); `reference` is NumPy in float64.
"""
