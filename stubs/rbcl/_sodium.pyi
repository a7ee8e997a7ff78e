import ctypes

_sodium: ctypes.CDLL
