"""Config, schedules, the stages, the trainer, checkpoints, the run folder."""
