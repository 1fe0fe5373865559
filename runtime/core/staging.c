/* staging.c: copies from ordinary host memory to a device, through a ring of pinned buffers.
 *
 * Only from pinned memory does a device copy at full speed and while the caller goes on. The caller's bytes are copied into a
 * free buffer, the buffer is sent, and an event says when it is free again; meanwhile the caller fills the next one. So a batch
 * is handed over without waiting for the GPU. A reader of files takes a buffer and puts the bytes right there; several threads
 * can read, convert and send at the same time.
 *
 * Invariants
 *   - A slot is taken by one thread at a time. The lock guards `busy`; the other fields belong to the thread that has taken the
 *     slot.
 *   - Slots live as long as the process. There is one ring, because a process uses at most one device that is not addressable. */
#include "core/device.h"
#include "core/memory.h"
#include <pthread.h>
#include <string.h>

enum { SLOTS = 16 }; /* the number of threads that can fill a buffer at the same time */

struct lr_stage {
    char *data;
    lr_device_event *sent;
    bool busy;
};

static lr_stage slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t freed = PTHREAD_COND_INITIALIZER;
static int next_slot; /* the one that was taken longest ago */

static int slot_new(const lr_driver *driver, lr_stage *s)
{
    if (s->data == NULL) {
        void *data = NULL;
        const int status = lr_memory_injected() ? LR_ENOMEM : driver->alloc_pinned(&data, LR_STAGE_BYTES);
        if (status == LR_ENOMEM)
            return lr_fail(LR_ENOMEM, "out of host memory: %d bytes that a device can copy from", LR_STAGE_BYTES);
        if (status != LR_OK)
            return status;
        s->data = data;
    }
    return s->sent != NULL ? LR_OK : driver->event_new(&s->sent);
}

void lr_stage_give_back(lr_stage *s)
{
    pthread_mutex_lock(&lock);
    s->busy = false;
    pthread_cond_signal(&freed);
    pthread_mutex_unlock(&lock);
}

int lr_stage_take(const lr_driver *driver, lr_stage **out)
{
    lr_stage *s = NULL;
    pthread_mutex_lock(&lock);
    while (s == NULL) {
        for (int i = 0; i < SLOTS && s == NULL; i++)
            if (!slots[(next_slot + i) % SLOTS].busy)
                s = &slots[(next_slot + i) % SLOTS];
        if (s == NULL)
            pthread_cond_wait(&freed, &lock);
    }
    s->busy = true;
    next_slot = (int)(s - slots + 1) % SLOTS;
    pthread_mutex_unlock(&lock);
    int status = slot_new(driver, s);
    if (status == LR_OK)
        status = driver->event_wait(s->sent);
    if (status != LR_OK) {
        lr_stage_give_back(s);
        return status;
    }
    *out = s;
    return LR_OK;
}

void *lr_stage_data(lr_stage *s)
{
    return s->data;
}

int lr_stage_send(const lr_driver *driver, lr_stream *stream, lr_stage *s, const lr_copy *copy)
{
    lr_copy c = *copy;
    c.from = s->data;
    c.from_pitch = c.width;
    int status = driver->copy(stream, &c);
    if (status == LR_OK)
        status = driver->event_record(s->sent, stream);
    lr_stage_give_back(s);
    return status;
}

/* Copy through one slot, which all rows fit together. */
static int fill_and_send(const lr_driver *driver, lr_stream *stream, const lr_copy *c)
{
    lr_stage *s = NULL;
    const int status = lr_stage_take(driver, &s);
    if (status != LR_OK)
        return status;
    for (size_t i = 0; i < c->rows; i++)
        memcpy(s->data + i * c->width, (const char *)c->from + i * c->from_pitch, c->width);
    return lr_stage_send(driver, stream, s, c);
}

int lr_stage_to_device(const lr_driver *driver, lr_stream *stream, const lr_copy *copy)
{
    lr_copy c = *copy;
    if (c.rows == 1 || (c.to_pitch == c.width && c.from_pitch == c.width)) {
        c.width *= c.rows;
        c.rows = 1;
    }
    const size_t width = c.width < LR_STAGE_BYTES ? c.width : LR_STAGE_BYTES;
    const size_t rows = width > 0 ? LR_STAGE_BYTES / width : 1;
    for (size_t row = 0; row < c.rows; row += rows)
        for (size_t at = 0; at < c.width; at += width) {
            lr_copy part = c;
            part.to = (char *)c.to + row * c.to_pitch + at;
            part.from = (const char *)c.from + row * c.from_pitch + at;
            part.width = c.width - at < width ? c.width - at : width;
            part.rows = c.rows - row < rows ? c.rows - row : rows;
            const int status = fill_and_send(driver, stream, &part);
            if (status != LR_OK)
                return status;
        }
    return LR_OK;
}
