/* postprocessor.c: the special tokens around a text. For a single text, every post-processor of tokenizer.json comes down to ids
 * before it and ids after it. */
#include "text/text.h"
#include <string.h>

static int too_many(const lr_place *at, size_t count)
{
    return count < LR_TEXT_SPECIAL
               ? LR_OK
               : lr_spec_unsupported(at, "more than %d special tokens around a text are not supported",
                                     LR_TEXT_SPECIAL);
}

/* The template's type_id. BERT's are all 0 for a single text; others would select another embedding. */
static int check_type_id(const lr_place *at, const lr_json_node *piece)
{
    int64_t type_id = 0;
    const int status = lr_spec_integer(at, piece, "type_id", true, 0, UINT32_MAX, &type_id);
    if (status == LR_OK && type_id != 0)
        return lr_spec_unsupported(&(lr_place){at, "type_id", 0}, "token types other than 0 are not supported");
    return status;
}

/* Insert it as the index-th of the ids before the text. */
static int put_before(lr_postprocessor *p, size_t index, int32_t id)
{
    lr_ids *ids = &p->before;
    const int status = lr_ids_reserve(ids, 1);
    if (status != LR_OK)
        return status;
    memmove(ids->data + index + 1, ids->data + index, (ids->count - index) * sizeof ids->data[0]);
    ids->data[index] = id;
    ids->count++;
    return LR_OK;
}

/* "cls": ["[CLS]", 101] */
static int read_pair(const lr_place *at, const lr_json_node *spec, const char *key, int32_t *id)
{
    const lr_json_node *pair = NULL;
    const int status = lr_spec_array(at, spec, key, &pair);
    return status == LR_OK ? lr_spec_id(&(lr_place){at, key, 0}, lr_spec_item(pair, 1), id) : status;
}

static int load_cls_sep(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec)
{
    int32_t cls = 0, sep = 0;
    int status = read_pair(at, spec, "cls", &cls);
    if (status == LR_OK)
        status = read_pair(at, spec, "sep", &sep);
    if (status == LR_OK)
        status = too_many(at, p->before.count);
    if (status == LR_OK)
        status = too_many(at, p->after.count);
    if (status == LR_OK)
        status = put_before(p, 0, cls);
    return status == LR_OK ? lr_ids_put(&p->after, sep) : status;
}

/* Adds all ids of the special token that a template names. */
static int put_special(lr_postprocessor *p, const lr_place *at, const lr_json_node *piece, const lr_json_node *tokens,
                       bool after, size_t *index)
{
    const char *name = NULL;
    const lr_json_node *ids = NULL;
    int status = lr_spec_string(at, piece, "id", true, &name, NULL);
    if (status == LR_OK)
        status = check_type_id(at, piece);
    if (status != LR_OK)
        return status;
    const lr_json_node *token = lr_json_get(tokens, name);
    if (token == NULL)
        return lr_spec_bad(at, "\"%.60s\" is not among special_tokens", name);
    status = lr_spec_array(at, token, "ids", &ids);
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(ids); i++) {
        int32_t id = 0;
        status = lr_spec_id(at, lr_spec_item(ids, i), &id);
        if (status == LR_OK)
            status = too_many(at, after ? p->after.count : p->before.count);
        if (status == LR_OK)
            status = after ? lr_ids_put(&p->after, id) : put_before(p, (*index)++, id);
    }
    return status;
}

static int load_template(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec)
{
    const lr_json_node *pieces = NULL, *tokens = NULL;
    bool after = false;
    size_t index = 0;
    int status = lr_spec_array(at, spec, "single", &pieces);
    if (status == LR_OK)
        status = lr_spec_object(at, spec, "special_tokens", &tokens);
    const lr_place here = {at, "single", 0};
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(pieces); i++) {
        const lr_place place = {&here, NULL, i};
        const lr_json_node *piece = lr_spec_item(pieces, i), *sequence = lr_spec_find(piece, "Sequence");
        if (sequence != NULL) {
            const char *which = NULL;
            status = lr_spec_string(&place, sequence, "id", true, &which, NULL);
            if (status == LR_OK)
                status = check_type_id(&(lr_place){&place, "Sequence", 0}, sequence);
            if (status == LR_OK && (after || strcmp(which, "A") != 0))
                status = lr_spec_unsupported(&place, "a template must have the text, A, once");
            after = true;
        } else {
            const lr_json_node *special = NULL;
            status = lr_spec_object(&place, piece, "SpecialToken", &special);
            if (status == LR_OK)
                status = put_special(p, &place, special, tokens, after, &index);
        }
    }
    if (status == LR_OK && !after)
        return lr_spec_unsupported(&here, "a template must have the text, A, once");
    return status;
}

/* ByteLevel is about offsets only, which nobody asks for here. */
static int load_nothing(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec)
{
    (void)p, (void)at, (void)spec;
    return LR_OK;
}

static const lr_spec_kind sequence = {.type = "Sequence"};
static const lr_postprocessor_kind template_processing = {{.type = "TemplateProcessing"}, load_template},
                                   bert = {{.type = "BertProcessing", .keys = {"sep", "cls"}}, load_cls_sep},
                                   roberta = {{.type = "RobertaProcessing"}, load_cls_sep},
                                   byte_level = {{.type = "ByteLevel"}, load_nothing};

/* Add a kind here. */
static const lr_spec_kind *const kinds[] = {&sequence, &template_processing.kind, &bert.kind, &roberta.kind,
                                            &byte_level.kind};

static int load(void *postprocessor, const lr_place *at, const lr_json_node *spec)
{
    const lr_spec_kind *kind = NULL;
    int status = lr_spec_depth(at);
    if (status == LR_OK)
        status = lr_spec_kind_of(at, spec, kinds, LR_COUNT_OF(kinds), "post-processor", &kind);
    if (status != LR_OK)
        return status;
    return kind == &sequence ? lr_spec_each(at, spec, "processors", load, postprocessor)
                             : ((const lr_postprocessor_kind *)kind)->load(postprocessor, at, spec);
}

int lr_postprocessor_load(lr_postprocessor *p, const lr_place *at, const lr_json_node *spec)
{
    return load(p, at, spec);
}

void lr_postprocessor_free(lr_postprocessor *p)
{
    lr_free(p->before.data);
    lr_free(p->after.data);
    *p = (lr_postprocessor){0};
}
