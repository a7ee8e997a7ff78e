"""Every limit in one place, with its unit."""

from datetime import timedelta

MESSAGE_BYTES = 1 << 20  # largest gRPC message, either way
BATCH_ELEMENTS = 16_384  # elements of one lookup batch after padding (the protocol allows 65,535)
BATCH_INLINE = 32  # up to so many elements a request has the fast worker, not the bulk ones
SYNC_CHUNK = 256 * 1024  # bytes of batch content in one message of a pull
QUERY_ITEMS = 200_000  # values in one question of a person
IMPORT_ROWS = 20_000_000  # rows of one file
IMPORT_CHUNK = 2_000  # rows in one message and one piece of work
IMPORT_COLUMNS = 200
CELL_CHARACTERS = 4_000
BAD_ROWS_SHOWN = 1_000  # reported one by one; all of them are counted
CLOCK_SKEW = timedelta(minutes=5)
RETRIES_ANSWERED = 5  # times one charged question is answered again
REASONS_A_DAY = 1_000  # distinct refusal records a day and member
STATEMENTS_A_LIST = 100_000
CONCURRENT_CALLS = 200  # under way at once, all peers together
CONCURRENT_BULK = 4  # large evaluations under way at once for one member
KEEPALIVE = timedelta(seconds=30)
GRACE = timedelta(seconds=20)  # for calls in flight at shutdown
SEAL_CHUNK = 4_096  # entries read at once while sealing
SEAL_TASK = 256  # entries in one piece of work for a core
SYNC_TRIES = 3  # times a broken pull is taken up again
LIST_BYTES = 1 << 40  # content of one batch that a querier accepts
CAPTURE_BYTES = 1 << 30  # of a capture file
