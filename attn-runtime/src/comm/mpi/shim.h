/* What Rust calls of MPI: functions and plain numbers instead of the types and macros that differ between
 * implementations. Every function that returns an int returns MPI's own code: 0 is success, and attn_mpi_text has words
 * for the others. No function waits, but those that are collective. */
#ifndef ATTN_MPI_SHIM_H
#define ATTN_MPI_SHIM_H

#include <stdint.h>

/* A process's place. Mirrored in ffi.rs. */
struct attn_mpi_place {
    uint64_t comm;  /* the communicator made for us: a duplicate of MPI_COMM_WORLD */
    uint64_t cores; /* given: a number for the cores that this process may use */
    int32_t rank;
    int32_t size;
    int32_t local_rank; /* among the ranks that share this one's memory */
    int32_t local_size;
    int32_t sharers; /* how many of those may use the same cores, this one included */
    int32_t unused;
};

/* A message that has been found and not yet received. Mirrored in ffi.rs. */
struct attn_mpi_found {
    uint64_t message;
    uint64_t bytes;
    int32_t from;
    int32_t there; /* 0 if there is none */
};

/* Whether MPI is up and may be called: 0 not yet, 1 yes, 2 not any more. */
int32_t attn_mpi_state(void);

/* Starts MPI, asking for its highest thread level. `level` is what it gives, or gave to whoever started it before. */
int32_t attn_mpi_init(int32_t *level);

/* Whether a thread level lets any thread call MPI, if only one does at a time. */
int32_t attn_mpi_serialized(int32_t level);

/* Collective: duplicates MPI_COMM_WORLD, whose duplicate returns its errors, and asks who is where. */
int32_t attn_mpi_open(struct attn_mpi_place *place);

/* Begins to send. The bytes must stay as they are until attn_mpi_test says that `request` is done. */
int32_t attn_mpi_send(uint64_t comm, const void *bytes, int32_t length, int32_t to, int32_t tag, uint64_t *request);

/* Begins to receive the next message of a rank and tag. The bytes must stay until `request` is done. */
int32_t attn_mpi_receive(uint64_t comm, void *bytes, int32_t length, int32_t from, int32_t tag, uint64_t *request);

/* Looks for a message of a tag, whichever rank's. One that is found is taken out of the queue: it must be received. */
int32_t attn_mpi_probe(uint64_t comm, int32_t tag, struct attn_mpi_found *found);

/* Begins to receive a message that was found. */
int32_t attn_mpi_fetch(uint64_t *message, void *bytes, int32_t length, uint64_t *request);

/* Whether a request is done, after which it is no more. */
int32_t attn_mpi_test(uint64_t *request, int32_t *done);

/* Collective: every rank's n-th part, of so many bytes, goes to rank n. What exchanges are measured against. */
int32_t attn_mpi_alltoall(uint64_t comm, const void *parts, void *received, int32_t bytes);

/* Collective: gives back a communicator. */
int32_t attn_mpi_free(uint64_t comm);

/* Collective: ends MPI. */
int32_t attn_mpi_finalize(void);

/* Sees to it that this process, if it exits while MPI is up, ends its job: with a status other than 0, without calling
 * what waits for other ranks, and some time after it began to exit, in which it sends them `note` (of 128 bytes at most)
 * under `tag`, and they can print why they end. To be called once. */
int32_t attn_mpi_watch_exit(uint64_t comm, const void *note, int32_t length, int32_t tag);

/* How long that is, in milliseconds. */
void attn_mpi_linger(uint32_t milliseconds);

/* The words for a code, or the library's name and version, as a string of at most `capacity` bytes with its zero. */
void attn_mpi_text(int32_t code, char *text, int32_t capacity);
void attn_mpi_version(char *text, int32_t capacity);

#endif
