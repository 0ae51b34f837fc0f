//! CLIP dual encoders on candle: three checkpoint formats, tokenizer, preprocessing, zero-shot classification.
