"""Every limit in one place, with its unit."""

from datetime import timedelta

MESSAGE_BYTES = 1 << 20  # largest gRPC message, either way
BATCH_ELEMENTS = 16_384  # elements of one lookup batch after padding (the protocol allows 65,535)
BATCH_INLINE = 32  # up to so many elements a request has a fast thread, not the bulk workers
SYNC_CHUNK = 256 * 1024  # bytes of batch content in one message of a pull
SCREENINGS = 20  # under way at a node
QUERY_ITEMS = 200_000  # values in one question of a person
IMPORT_ROWS = 20_000_000  # rows of one file
IMPORT_CHUNK = 2_000  # rows in one message and one piece of work
IMPORT_COLUMNS = 200
GARBAGE = 20_000  # new objects before the collector looks through them; of its default, 700, each thousand rows of a file cost several looks
CELL_CHARACTERS = 4_000
BAD_ROWS_SHOWN = 1_000  # reported one by one; all of them are counted
CLOCK_SKEW = timedelta(minutes=5)
OPEN_PROPOSALS = 100  # contracts of one member that wait for a decision here
PROPOSALS_A_DAY = 200  # contracts of one member, whatever became of them
PROPOSED_BYTES_A_DAY = 20_000_000
RECEIPT_SECONDS = (
    3 * 3600
)  # within which a receipt must promise its entry: two of the longest ticks, and clocks
QUESTION_AGE = timedelta(days=8)  # of a question that is asked again: answers are kept for a week
EVENTS_AT_ONCE = 500_000  # of one member in one reconciliation
EVENTS_BY_ID = 1_000  # asked for at once in a reconciliation
URGENT_VALUES = 32  # of a question that may draw on the reserve
RESERVE_A_MINUTE = (
    320  # evaluations of one member and list from its reserve: bulk that calls itself urgent stops here
)
BURST_SECONDS = 3_600  # longest stretch over which a budget's burst is counted
RETRIES_ANSWERED = 5  # times one charged question is answered again
REASONS_A_DAY = 1_000  # distinct refusal records a day and member
LISTS_A_HOLDER = 16  # that a querier follows
EPOCHS_A_LIST = 20  # heads of one list in an answer
PULLS_A_DAY = 2_000  # of one list and epoch by one member
RUNS_A_DAY = 100  # of one vertical job by its label holder
PULL_SECONDS = 3_600
DESCRIPTORS = 65_536  # open files that a node asks the system for
SIGN_INS_AT_ONCE = 8  # calls on the admin socket of whoever is not known yet
SIGN_IN_SECONDS = 2.0  # from such a call's headers to its message
CALLS_ON_SOCKET = 400  # all of them
MESSAGE_SECONDS = 10.0  # from a call's headers to its message
CONCURRENT_CALLS = 2_000  # under way at once, all members together
CONCURRENT_CALLS_A_MEMBER = 32
STRANGERS = 8  # introductions under way at once
CONCURRENT_BULK = 4  # large evaluations under way at once for one member
HEARTBEAT_SECONDS = 20  # between two words of a holder to who follows its lists
HEARD_SECONDS = 60  # since the last one, within which a kept answer counts
KEEPALIVE = timedelta(seconds=30)
GRACE = timedelta(seconds=20)  # for calls in flight at shutdown
LINGER = timedelta(seconds=1)  # for their answers to arrive
SEAL_CHUNK = 16_384  # entries read at once while sealing
SEAL_TASK = 512  # entries in one piece of work for a core: about 12 ms with the kernel, 45 with libsodium
SYNC_TRIES = 3  # times a broken pull is taken up again
LIST_BYTES = 1 << 36  # content of one batch that a querier accepts
DISK_RESERVE = 500_000_000  # bytes that a sync leaves free
CAPTURE_BYTES = 1 << 30  # of a capture file
MEETING_SILENCE = 1_800  # seconds without a message in a session of two sets: the other side may be computing
MEETING_SECONDS = 6 * 3_600
HELLO_SECONDS = 30
FAILED_LOGINS = 5  # then a name is locked, for twice as long after each further failure
LOCK_SECONDS = 900
FAILED_LOGINS_A_MINUTE = 30  # all names together
SESSION_SECONDS = 8 * 3600
INVITATION_SECONDS = 72 * 3600
TOKEN_DAYS = 90
TOKENS_A_PERSON = 50  # with sessions
PASSWORD_CHARACTERS = 12
ACTIONS_A_PERSON = 100  # that wait for a second person
ACTION_SHOWN = 1_000  # values of a question that the second person is shown
ACTION_CHARACTERS = 100  # of each
