/* json.h: functions of json.c for C, beside those of lr.h. */
#ifndef LR_IO_JSON_H
#define LR_IO_JSON_H

#include "core/core.h"

/* The member at `index` < length, in the order of the text. Constant time. */
const lr_json_node *lr_json_member(const lr_json_node *object, int64_t index, const char **key);

/* The decimal number that text, NUL-terminated, begins with. The point is a point whatever the user's locale. */
double lr_decimal_value(const char *text);

/* `size` bytes of text as a JSON string with its quotes, for the caller to lr_free. NULL: an error, with its status in *status:
 * LR_EINVAL (the text is not UTF-8) or LR_ENOMEM. */
char *lr_json_quote(const char *text, size_t size, int *status);

#endif
