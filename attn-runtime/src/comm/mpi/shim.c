/* The calls of MPI, with its handles as numbers and its errors as values. What each function is for stands in shim.h. */
#define _DEFAULT_SOURCE
#include "shim.h"

#include <mpi.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Handles are integers in MPICH, pointers in Open MPI: both fit a uint64_t, and its bytes are all that Rust keeps. */
_Static_assert(sizeof(MPI_Comm) <= sizeof(uint64_t), "a communicator does not fit 64 bits");
_Static_assert(sizeof(MPI_Request) <= sizeof(uint64_t), "a request does not fit 64 bits");
_Static_assert(sizeof(MPI_Message) <= sizeof(uint64_t), "a message does not fit 64 bits");

#define DEFINE_PACKING(Type, name)                                                                                     \
    static uint64_t pack_##name(Type handle) {                                                                         \
        uint64_t packed = 0;                                                                                           \
        memcpy(&packed, &handle, sizeof handle);                                                                       \
        return packed;                                                                                                 \
    }                                                                                                                  \
    static Type unpack_##name(uint64_t packed) {                                                                       \
        Type handle;                                                                                                   \
        memcpy(&handle, &packed, sizeof handle);                                                                       \
        return handle;                                                                                                 \
    }

DEFINE_PACKING(MPI_Comm, comm)
DEFINE_PACKING(MPI_Request, request)
DEFINE_PACKING(MPI_Message, message)

/* Leaves a function with the code of a call that failed. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        int code = (call);                                                                                             \
        if (code != MPI_SUCCESS)                                                                                       \
            return code;                                                                                               \
    } while (0)

int32_t attn_mpi_state(void) {
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    return finalized ? 2 : initialized ? 1 : 0;
}

int32_t attn_mpi_init(int32_t *level) {
    int given = MPI_THREAD_SINGLE;
    if (attn_mpi_state() == 0) {
        TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &given));
        /* Whoever started MPI decides what its errors do; here they are values. */
        TRY(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    } else {
        TRY(MPI_Query_thread(&given));
    }
    *level = given;
    return MPI_SUCCESS;
}

int32_t attn_mpi_serialized(int32_t level) { return level >= MPI_THREAD_SERIALIZED; }

/* How many processes of a communicator gave the same number. */
static int count_equal(MPI_Comm comm, uint64_t number, int size, int32_t *equal) {
    uint64_t *numbers = malloc((size_t)size * sizeof *numbers);
    if (!numbers)
        return MPI_ERR_NO_MEM;
    int code = MPI_Allgather(&number, sizeof number, MPI_BYTE, numbers, sizeof number, MPI_BYTE, comm);
    *equal = 0;
    for (int rank = 0; code == MPI_SUCCESS && rank < size; rank++)
        *equal += numbers[rank] == number;
    free(numbers);
    return code;
}

int32_t attn_mpi_open(struct attn_mpi_place *place) {
    MPI_Comm world, node;
    TRY(MPI_Comm_dup(MPI_COMM_WORLD, &world));
    TRY(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN));
    place->comm = pack_comm(world);
    TRY(MPI_Comm_rank(world, &place->rank));
    TRY(MPI_Comm_size(world, &place->size));
    TRY(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, place->rank, MPI_INFO_NULL, &node));
    TRY(MPI_Comm_rank(node, &place->local_rank));
    TRY(MPI_Comm_size(node, &place->local_size));
    TRY(count_equal(node, place->cores, place->local_size, &place->sharers));
    TRY(MPI_Comm_free(&node));
    return MPI_SUCCESS;
}

int32_t attn_mpi_send(uint64_t comm, const void *bytes, int32_t length, int32_t to, int32_t tag, uint64_t *request) {
    MPI_Request handle = MPI_REQUEST_NULL;
    TRY(MPI_Isend(bytes, length, MPI_BYTE, to, tag, unpack_comm(comm), &handle));
    *request = pack_request(handle);
    return MPI_SUCCESS;
}

int32_t attn_mpi_receive(uint64_t comm, void *bytes, int32_t length, int32_t from, int32_t tag, uint64_t *request) {
    MPI_Request handle = MPI_REQUEST_NULL;
    TRY(MPI_Irecv(bytes, length, MPI_BYTE, from, tag, unpack_comm(comm), &handle));
    *request = pack_request(handle);
    return MPI_SUCCESS;
}

int32_t attn_mpi_probe(uint64_t comm, int32_t tag, struct attn_mpi_found *found) {
    int there = 0, bytes = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    TRY(MPI_Improbe(MPI_ANY_SOURCE, tag, unpack_comm(comm), &there, &message, &status));
    found->there = there;
    if (!there)
        return MPI_SUCCESS;
    TRY(MPI_Get_count(&status, MPI_BYTE, &bytes));
    found->message = pack_message(message);
    found->from = status.MPI_SOURCE;
    found->bytes = bytes < 0 ? 0 : (uint64_t)bytes;
    return MPI_SUCCESS;
}

int32_t attn_mpi_fetch(uint64_t *message, void *bytes, int32_t length, uint64_t *request) {
    MPI_Message found = unpack_message(*message);
    MPI_Request handle = MPI_REQUEST_NULL;
    TRY(MPI_Imrecv(bytes, length, MPI_BYTE, &found, &handle));
    *message = pack_message(found);
    *request = pack_request(handle);
    return MPI_SUCCESS;
}

int32_t attn_mpi_test(uint64_t *request, int32_t *done) {
    MPI_Request handle = unpack_request(*request);
    int flag = 0;
    TRY(MPI_Test(&handle, &flag, MPI_STATUS_IGNORE));
    *request = pack_request(handle);
    *done = flag;
    return MPI_SUCCESS;
}

int32_t attn_mpi_alltoall(uint64_t comm, const void *parts, void *received, int32_t bytes) {
    return MPI_Alltoall(parts, bytes, MPI_BYTE, received, bytes, MPI_BYTE, unpack_comm(comm));
}

int32_t attn_mpi_free(uint64_t comm) {
    MPI_Comm handle = unpack_comm(comm);
    return MPI_Comm_free(&handle);
}

int32_t attn_mpi_finalize(void) { return MPI_Finalize(); }

static atomic_uint linger = 1000;
static struct {
    pid_t process;
    MPI_Comm comm;
    char note[128];
    int length, tag, aborts;
} watched;

static void end_job(int status, void *unused) {
    int size = 0, level = MPI_THREAD_SINGLE;
    (void)unused;
    /* A child of this process has the handler and no part in the job; a rank alone has nobody to tell. */
    if (getpid() != watched.process || attn_mpi_state() != 1 || MPI_Comm_size(watched.comm, &size) || size == 1)
        return;
    fflush(NULL);
    /* Another thread may be inside of MPI. */
    int tell = MPI_Query_thread(&level) == MPI_SUCCESS && level >= MPI_THREAD_MULTIPLE;
    for (int rank = 0; tell && rank < size; rank++) {
        MPI_Request request;
        MPI_Isend(watched.note, watched.length, MPI_BYTE, rank, watched.tag, watched.comm, &request);
    }
    for (unsigned waited = 0; waited < linger; waited += 10) {
        const struct timespec time = {0, 10 * 1000000};
        int there = 0;
        nanosleep(&time, NULL);
        if (tell) /* What was sent goes on its way while MPI is called. */
            MPI_Iprobe(MPI_ANY_SOURCE, watched.tag, watched.comm, &there, MPI_STATUS_IGNORE);
    }
    if (status == 0)
        status = 1;
    if (watched.aborts)
        MPI_Abort(MPI_COMM_WORLD, status);
    _exit(status);
}

#ifndef __GLIBC__
/* Only glibc tells a handler the status. */
static void end_job_badly(void) { end_job(1, NULL); }
#endif

int32_t attn_mpi_watch_exit(uint64_t comm, const void *note, int32_t length, int32_t tag) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    if (length < 0 || (size_t)length > sizeof watched.note)
        return 1;
    memcpy(watched.note, note, (size_t)length);
    watched.length = length;
    watched.tag = tag;
    watched.comm = unpack_comm(comm);
    watched.process = getpid();
    /* Open MPI's mpirun ends a job when a process leaves without MPI_Finalize, and says which rank it was. MPICH's does
     * the first without the second, and with the status of that process, which may be 0: there the library says it. */
    attn_mpi_version(version, sizeof version);
    watched.aborts = strncmp(version, "Open MPI", 8) != 0;
#ifdef __GLIBC__
    return on_exit(end_job, NULL);
#else
    return atexit(end_job_badly);
#endif
}

void attn_mpi_linger(uint32_t milliseconds) { linger = milliseconds; }

/* Copies what fits of a string. */
static void copy(char *text, int32_t capacity, const char *from) { snprintf(text, (size_t)capacity, "%s", from); }

void attn_mpi_text(int32_t code, char *text, int32_t capacity) {
    char words[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    /* Asking for the words of a code that MPI does not know is itself an error, which ends the program by default. */
    if (attn_mpi_state() != 1 || MPI_Error_string(code, words, &length) != MPI_SUCCESS)
        snprintf(words, sizeof words, "code %d", (int)code);
    copy(text, capacity, words);
}

void attn_mpi_version(char *text, int32_t capacity) {
    char words[MPI_MAX_LIBRARY_VERSION_STRING + 1] = "";
    int length = 0;
    if (MPI_Get_library_version(words, &length) != MPI_SUCCESS)
        words[0] = 0;
    copy(text, capacity, words);
}
