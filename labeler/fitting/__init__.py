"""Fitting: the training loops behind `labeler.training` and `labeler.pretraining`, on one process or many, with checkpoints."""
