/* yaml.c: YAML as a sequence of events, read by libyaml. What the events mean (which words are booleans, which keys are allowed) is
 * decided in lua/lorarun/base/yaml.lua.
 *
 * Invariants
 *   - An event's text is valid until the next call: libyaml owns it. libyaml's allocations are not counted.
 *   - libyaml's parser must not be called again after it has failed or the stream has ended; `over` notes that. */
#include "core/core.h"
#include "io/file.h"
#include <string.h>
#include <yaml.h>

enum { MAX_TEXT = 1 << 20 }; /* a settings file is small; libyaml's time and memory grow with the text */

struct lr_yaml {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event, over;
    char *name;
};

int lr_yaml_open(lr_yaml **out, const char *text, int64_t size, const char *name)
{
    if (size < 0 || size > MAX_TEXT)
        return lr_fail(LR_EFORMAT, "%s: %lld bytes of YAML; at most %d are read", name, (long long)size, MAX_TEXT);
    const int status = lr_file_refuse_pointer(name, text, (size_t)size);
    if (status != LR_OK)
        return status;
    lr_yaml *y = lr_calloc(1, sizeof *y);
    if (y == NULL)
        return LR_ENOMEM;
    y->name = lr_strdup(name);
    if (y->name == NULL) {
        lr_free(y);
        return LR_ENOMEM;
    }
    if (!yaml_parser_initialize(&y->parser)) {
        lr_free(y->name);
        lr_free(y);
        return lr_fail(LR_ENOMEM, "out of host memory for a YAML parser");
    }
    /* no yaml_parser_set_encoding: without it libyaml looks for a byte order mark, and assumes UTF-8 if there is none */
    yaml_parser_set_input_string(&y->parser, (const unsigned char *)text, (size_t)size);
    *out = y;
    return LR_OK;
}

static int fail_parse(const lr_yaml *y)
{
    const yaml_parser_t *p = &y->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return lr_fail(LR_ENOMEM, "out of host memory while reading %s", y->name);
    const char *problem = p->problem != NULL ? p->problem : "unknown error";
    if (p->error == YAML_READER_ERROR) /* bytes that are no UTF-8, or control characters */
        return lr_fail(LR_EFORMAT, "%s: not valid YAML: %s at byte %zu", y->name, problem, p->problem_offset + 1);
    return lr_fail(LR_EFORMAT, "%s:%zu:%zu: not valid YAML: %s%s%s", y->name, p->problem_mark.line + 1,
                   p->problem_mark.column + 1, problem, p->context != NULL ? " " : "",
                   p->context != NULL ? p->context : "");
}

static void describe(const yaml_event_t *e, lr_yaml_event *out)
{
    *out = (lr_yaml_event){
        .kind = LR_YAML_OTHER, .line = (int64_t)e->start_mark.line + 1, .column = (int64_t)e->start_mark.column + 1};
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        out->kind = LR_YAML_SCALAR;
        out->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        out->text = (const char *)e->data.scalar.value;
        out->length = (int64_t)e->data.scalar.length;
        out->anchor = (const char *)e->data.scalar.anchor;
        out->tag = (const char *)e->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        out->kind = LR_YAML_SEQUENCE;
        out->anchor = (const char *)e->data.sequence_start.anchor;
        out->tag = (const char *)e->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        out->kind = LR_YAML_MAPPING;
        out->anchor = (const char *)e->data.mapping_start.anchor;
        out->tag = (const char *)e->data.mapping_start.tag;
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        out->kind = LR_YAML_END;
        break;
    case YAML_ALIAS_EVENT:
        out->kind = LR_YAML_ALIAS;
        out->anchor = (const char *)e->data.alias.anchor;
        break;
    case YAML_DOCUMENT_START_EVENT:
        out->kind = LR_YAML_DOCUMENT;
        break;
    default:
        break;
    }
}

int lr_yaml_next(lr_yaml *y, lr_yaml_event *out)
{
    if (y->has_event)
        yaml_event_delete(&y->event);
    y->has_event = false;
    if (y->over)
        return lr_fail(LR_EEND, "%s: no more events", y->name);
    if (!yaml_parser_parse(&y->parser, &y->event)) {
        y->over = true;
        return fail_parse(y);
    }
    y->has_event = true;
    if (y->event.type == YAML_STREAM_END_EVENT) {
        y->over = true;
        return lr_fail(LR_EEND, "%s: no more events", y->name);
    }
    describe(&y->event, out);
    return LR_OK;
}

void lr_yaml_close(lr_yaml *y)
{
    if (y == NULL)
        return;
    if (y->has_event)
        yaml_event_delete(&y->event);
    yaml_parser_delete(&y->parser);
    lr_free(y->name);
    lr_free(y);
}
