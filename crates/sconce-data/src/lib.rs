//! Images to tensors: decoding, Pillow-exact resizing, transforms, data sets and a prefetching loader.
