"""Fitting: the training loop behind `labeler.training`, on one process or many, with checkpoints, teachers and pretraining."""
