"""From raw predictions to detections, and from detections to COCO metrics."""
