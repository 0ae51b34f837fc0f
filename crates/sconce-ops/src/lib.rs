//! Tensor operations for vision models on candle: differentiable, exact, fast on CPU.
