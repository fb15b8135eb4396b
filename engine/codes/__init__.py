"""Run-length codes of masks: COCO's compressed strings, and the runs behind them."""
