"""Other formats: SA-1B and COCO and what else is exported, SA-1B imported."""
