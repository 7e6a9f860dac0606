"""The terminal: takes the facility's DICOM images to the store and back. Command: `fsync`."""
