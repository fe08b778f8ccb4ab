"""The ranker: embedding bags of TorchRec under a choice of architectures."""
