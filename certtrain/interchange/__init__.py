"""Networks and properties from and for others: ONNX and VNN-LIB."""
