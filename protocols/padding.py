"""Public bucket sizes, so that a count shows little."""


def bucket(count: int, minimum: int = 1) -> int:
    """The smallest public size that holds `count`.

    Powers of two up to 16, then Padmé (Nikitin et al., PoPETs 2019(4), "Reducing metadata leakage from
    encrypted files and communication with PURBs", §4.3): overhead below 12 %, O(log log n) bits revealed.
    """
    count = max(count, minimum)
    if count <= 1:
        return max(count, 0)
    if count <= 16:
        return 1 << (count - 1).bit_length()
    step = granule(count)
    return -(-count // step) * step


def granule(count: int) -> int:
    """Distance between Padmé sizes around `count`; 1 for counts up to 16."""
    if count <= 16:
        return 1
    exponent = count.bit_length() - 1
    significant = exponent.bit_length()
    return int(1 << (exponent - significant))
