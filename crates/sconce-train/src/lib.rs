//! Optimisers, schedules, EMA, checkpoints with bit-exact resume and logs for candle models.
