//! Vision backbones on candle that load official weights and train: ViT, DeiT, DINO, ResNet.
