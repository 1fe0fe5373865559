/* device_host.h: when the memory that stands for a GPU's may be touched. See device_host.c. */
#ifndef LR_DEVICE_HOST_H
#define LR_DEVICE_HOST_H

#ifdef __cplusplus
extern "C" {
#endif

/* Between these two calls device memory can be read and written; outside, touching it ends the process as it would with a GPU. */
void lr_device_memory_open(void);
void lr_device_memory_close(void);

#ifdef __cplusplus
}
#endif

#endif
