//! Vision models on candle: attention, backbones, dual encoders, data and training behind one name.
