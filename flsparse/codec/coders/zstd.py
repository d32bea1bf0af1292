"""zstd frames that declare their size, checked against the expected one before anything is decompressed."""

import zstandard

from flsparse.codec.errors import PayloadError, require

REPEATS = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=1)
# In noise zstd finds many short matches that cost more than they save; here it hardly looks for any, and is a Huffman
# coder for the most part.
NOISE = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=17, hash_log=6, chain_log=6, search_log=1,
    write_content_size=1,
)  # fmt: skip
_PROBE = 1 << 15


def compress(data: bytes, way: zstandard.ZstdCompressionParameters = NOISE) -> bytes:
    """Return one frame."""
    return zstandard.ZstdCompressor(compression_params=way).compress(data)


def smallest(data: bytes, rival: float) -> bytes | None:
    """Return the smaller frame of both ways, or None where neither is below ``rival`` bytes, as a start may tell."""
    best = None
    for way in (REPEATS, NOISE):
        if len(data) > 2 * _PROBE and len(compress(data[:_PROBE], way)) / _PROBE > 1.1 * rival / len(data):
            continue
        frame = compress(data, way)
        if len(frame) + 2 < rival:
            best, rival = frame, len(frame)
    return best


def decompress(data: memoryview, size: int) -> bytes:
    """Return exactly ``size`` bytes.

    Raises
    ------
    PayloadError
        The frame is damaged, or declares another size; nothing is allocated then.
    """
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        require(declared == size, f"a zstd section declares {declared} bytes instead of {size}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"a zstd section is damaged: {error}") from error
