/* pack.h: packing of frozen weights for a GPU. See pack.c. */
#ifndef LR_CUDA_PACK_H
#define LR_CUDA_PACK_H

#include "core/device.h"
#include "core/op.h"

/* The driver's pack, see core/device.h. */
int lr_cuda_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype);

const lr_backend *lr_cuda_backend(void); /* table.c */
const lr_driver *lr_cuda_driver(void);   /* listed by the build, see core/device.c */

#endif
