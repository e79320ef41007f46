"""Exchange with other programs: networks as ONNX, properties as VNN-LIB."""
