"""Trees in files: safetensors with a header that says in JSON how the tensors are put together; no pickle.

In reading order:
    version    of the library and of the format
    functions  torch's functions of numbers, which may be named
    containers what is no record, as parts and back
    numbers    tensors as bytes and back
    layouts    the structure of a tree as JSON
    digests    a few digits that tell trees apart
    readers    and back
    written    a file: written beside and renamed
    saved      save and load
"""
