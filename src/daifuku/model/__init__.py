"""The networks, as plain functions of tensors: no files, devices, ranks or precision policies in here."""
