/* device.h: a device is a driver, so that the allocator, tensors, ops and files know none of them by name.
 *
 * To add a kind of device: a folder of kernels/ with a driver, lr_NAME_driver(), and a table of kernels; its name in BACKENDS of
 * CMakeLists.txt; and its number in lr.h. device.c has the list of drivers.
 *
 * A driver's work is ordered by streams: work that is put on a stream is done later, in the order in which it was put there. On
 * the CPU it is done at once, and all streams are alike. Kernels run on lr_exec.stream, the compute stream, and so do the copies
 * of lr_tensor_read and lr_tensor_write. So freed memory may be handed out again while kernels still use it: the work of its
 * next user comes after theirs in the stream. Work on any other stream must be ordered against the compute stream by events. */
#ifndef LR_DEVICE_H
#define LR_DEVICE_H

#include "core/core.h"

typedef struct lr_stream lr_stream;             /* the driver's own */
typedef struct lr_device_event lr_device_event; /* once recorded, a point in a stream's work */
struct lr_backend;
struct lr_exec;
struct lr_tensor;

typedef enum lr_direction { LR_TO_DEVICE, LR_TO_HOST, LR_WITHIN_DEVICE } lr_direction;

/* `rows` pieces of `width` bytes; on each side a piece begins `pitch` bytes after the one before. */
typedef struct lr_copy {
    void *to;
    const void *from;
    size_t to_pitch, from_pitch, width, rows;
    lr_direction direction;
} lr_copy;

/* Functions that return int: LR_OK, or a status with lr_fail called. */
typedef struct lr_driver {
    int device;       /* its number in lr.h's enum */
    const char *name; /* "cuda", as recipes name it */
    /* Why this build cannot use one, or NULL. A driver with a reason needs no functions but those that serve the meta device,
     * when it is like this one: kernels, whose table then tells the sizes of their scratch, and pack. */
    const char *absent;
    bool addressable;        /* the processor may read and write its memory at any time */
    bool watched;            /* its memory is the processor's, so that AddressSanitizer may keep account of it */
    lr_device_traits traits; /* own_memory is filled in by device.c */

    int (*count)(void); /* how many of the kind this process may use; starts none */
    /* Called once, before anything else but count, uuid, kernels and pack: number `index` of them is the one. A failure says why
     * there is no such device; then nothing else is called. */
    int (*open)(int index);
    int (*describe)(char *buf, size_t cap);                        /* one line: model, memory */
    int (*memory_info)(int64_t *free_bytes, int64_t *total_bytes); /* of the device as a whole */
    int (*uuid)(int index, char *buf,
                size_t cap); /* a name that no other one in the world has; NULL: there are none. Starts none */
    const struct lr_backend *(*kernels)(void);
    void (*prepare)(struct lr_exec *exec); /* fill in what its kernels get */
    /* lr_tensor_pack, for arguments that were checked. w is on this device, or on the meta device, which is like it. */
    int (*pack)(struct lr_tensor **out, const struct lr_tensor *w, int direction, int dtype);

    /* Memory. LR_ENOMEM, and no other status, means that there is no more: the allocator then frees what it keeps and tries
     * again. reserve: addresses, more than the device has memory, at a multiple of 2 MiB; *bytes is their number. They are never
     * given back. */
    int (*reserve)(void **out, size_t *bytes);
    int (*allow)(
        size_t bytes); /* LR_OK where limits other than the device's let this many more be mapped; NULL: always */
    int (*map)(void *p, size_t bytes); /* give memory to addresses that have none */
    void (*unmap)(void *p,
                  size_t bytes); /* the same addresses and bytes as were mapped; waits until the device is idle */
    int (*alloc_pinned)(void **out, size_t bytes); /* host memory that the device copies from and to at full speed */
    void (*release_pinned)(void *p);

    /* The host memory of a copy must stay unchanged until the stream has done the copy. */
    int (*copy)(lr_stream *stream, const lr_copy *copy);
    /* Fill every piece of `copy->to` with an element of 1, 2, 4 or 8 bytes; from and direction are not used. */
    int (*fill)(lr_stream *stream, const lr_copy *copy, const void *element, size_t size);

    lr_stream *(*compute_stream)(void);
    int (*stream_new)(lr_stream **out);
    void (*stream_free)(lr_stream *stream);
    int (*stream_wait)(lr_stream *stream); /* until all its work is done; a failure of that work is reported here */
    int (*stream_wait_event)(lr_stream *stream, lr_device_event *event); /* the stream waits, not the caller */
    int (*event_new)(lr_device_event **out);
    void (*event_free)(lr_device_event *event);
    int (*event_record)(lr_device_event *event, lr_stream *stream);
    int (*event_wait)(lr_device_event *event); /* the caller waits; not at all for an event that was never recorded */
    int (*event_seconds)(lr_device_event *from, lr_device_event *to,
                         double *seconds); /* between two that have happened */
} lr_driver;

/* The driver of a device that is available, else NULL. The meta device has none. */
const lr_driver *lr_driver_of(int device);

/* The driver that knows a device's sizes: its own, whether there is one or not; for the meta device, that of the device it is
 * like. NULL where the number is no device's. */
const lr_driver *lr_driver_like(int device);

/* May the processor read and write memory of this device? False where there is no such device. */
bool lr_device_addressable(int device);

/* A copy from pageable host memory into device memory, through pinned buffers: the caller may change `from` when this returns; the
 * device gets the bytes in the stream's order. Any number of threads may call it. See staging.c. */
int lr_stage_to_device(const lr_driver *driver, lr_stream *stream, const lr_copy *copy);

/* The same, for bytes that are made in the pinned buffer itself: take a buffer (this waits until one is free), fill it, and send
 * it or give it back. After send, also one that failed, the buffer is no longer the caller's. send ignores copy->from: the
 * buffer's rows follow each other without gaps. */
enum { LR_STAGE_BYTES = 2 << 20 };
typedef struct lr_stage lr_stage;
int lr_stage_take(const lr_driver *driver, lr_stage **out);
void *lr_stage_data(lr_stage *stage);
int lr_stage_send(const lr_driver *driver, lr_stream *stream, lr_stage *stage, const lr_copy *copy);
void lr_stage_give_back(lr_stage *stage);

bool lr_is_deterministic(void); /* what lr_deterministic said */

#endif
