"""Average precision by the rules of COCO and LVIS, accuracies, the layout of metrics.json."""
