//! Layers, initialisers, parameter stores and checkpoint reading for vision models on candle.
