//! The strip16 packed weight layout and its safetensors container.
