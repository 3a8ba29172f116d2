"""Files of bytes, read and written whole."""

import os


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def write(path, data, mode=0o600):
    with open(path, 'wb') as file:
        file.write(data)
    os.chmod(path, mode)
    return path
