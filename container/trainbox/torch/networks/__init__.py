"""The bundled algorithm: networks on tables and images, from the channels to the exported model."""
