"""Config, schedules, the two stages, the trainer, checkpoints, the run folder."""
