/* tokenizer.c: the lr_tokenizer_* functions, which load a tokenizer.json and encode text with it. */
#include "text/text.h"
#include <string.h>

/* ---- loading -------------------------------------------------------------------------------------------------------- */
/* Where the parts of a tokenizer come from: `changes`, if it is given and has the part, else tokenizer.json. */
typedef struct parts {
    const lr_json_node *file, *changes;
    lr_place file_at, changes_at;
} parts;

/* A part, or NULL if it is missing or null, and the place of the object that it is in. */
static const lr_json_node *find_part(const parts *p, const char *key, const lr_place **at)
{
    const bool changed = p->changes != NULL && lr_json_get(p->changes, key) != NULL;
    *at = changed ? &p->changes_at : &p->file_at;
    return lr_spec_find(changed ? p->changes : p->file, key);
}

static const lr_spec_kind word_level = {.type = "WordLevel", .keys = {"unk_token", "vocab"}, .refused = true};

/* Add a word model here. The order counts for files without a "type". */
static const lr_spec_kind *const kinds[] = {&lr_bpe.kind, &lr_wordpiece.kind, &word_level};

static int load_model(lr_tokenizer *t, const lr_place *at, const lr_json_node *root)
{
    const lr_json_node *spec = NULL;
    const lr_spec_kind *kind = NULL;
    const lr_place here = {at, "model", 0};
    int status = lr_spec_object(at, root, "model", &spec);
    if (status == LR_OK)
        status = lr_spec_kind_of(&here, spec, kinds, LR_COUNT_OF(kinds), "model", &kind);
    if (status != LR_OK)
        return status;
    const lr_word_model *model = (const lr_word_model *)kind;
    if (model->byte_level != t->pretokenizer.byte_level)
        return lr_spec_unsupported(&here, "%s %s the pre-tokenizer ByteLevel is not supported", kind->type,
                                   model->byte_level ? "without" : "with");
    t->model = model;
    t->model_data = lr_calloc(1, model->size);
    return t->model_data == NULL ? LR_ENOMEM : model->load(t->model_data, &t->vocab, &here, spec);
}

static int load_side(lr_tokenizer *t, const lr_place *at, const lr_json_node *spec, const char *key, const char *right,
                     const char *left)
{
    const char *side = right;
    const int status = lr_spec_string(at, spec, key, false, &side, NULL);
    if (status != LR_OK)
        return status;
    t->truncate_left = strcmp(side, left) == 0;
    if (!t->truncate_left && strcmp(side, right) != 0)
        return lr_spec_bad(&(lr_place){at, key, 0}, "\"%.60s\" is neither \"%s\" nor \"%s\"", side, right, left);
    return LR_OK;
}

static int load_truncation(lr_tokenizer *t, const parts *p)
{
    const lr_json_node *spec = lr_spec_find(p->file, "truncation");
    const lr_place here = {&p->file_at, "truncation", 0};
    int status = LR_OK;
    if (spec != NULL)
        status = lr_spec_integer(&here, spec, "max_length", true, 0, LR_SPEC_LARGEST, &t->file_max_length);
    if (status == LR_OK && spec != NULL)
        status = load_side(t, &here, spec, "direction", "Right", "Left");
    if (status == LR_OK && p->changes != NULL && lr_spec_find(p->changes, "truncation_side") != NULL)
        status = load_side(t, &p->changes_at, p->changes, "truncation_side", "right", "left");
    return status;
}

static int load_added(lr_tokenizer *t, const parts *p)
{
    const lr_place *at;
    const lr_json_node *list = find_part(p, "added_tokens", &at);
    const lr_place here = {at, "added_tokens", 0};
    lr_encoder *e = NULL;
    int status = LR_OK;
    if (p->changes != NULL)
        status = lr_spec_bool(&p->changes_at, p->changes, "split_special_tokens", false, &t->added.split_special);
    if (status != LR_OK || list == NULL)
        return status;
    if (lr_spec_value(list).kind != LR_JSON_ARRAY)
        return lr_spec_bad(&here, "expected an array");
    status = lr_encoder_take(&e, t);
    if (status == LR_OK) {
        status = lr_added_load(&t->added, &t->vocab, &t->normalizer, &e->work, &here, list, at == &p->changes_at);
        lr_encoder_give(e);
    }
    return status;
}

static int load_parts(lr_tokenizer *t, const parts *p)
{
    const char *version = "1.0";
    const lr_place *at;
    if (lr_spec_value(p->file).kind != LR_JSON_OBJECT)
        return lr_spec_bad(&p->file_at, "this is no tokenizer.json: its top is not an object");
    int status = lr_spec_string(&p->file_at, p->file, "version", false, &version, NULL);
    if (status == LR_OK && strcmp(version, "1.0") != 0)
        return lr_spec_unsupported(&p->file_at, "version \"%.60s\" is not supported, only 1.0", version);
    if (status == LR_OK)
        status = load_truncation(t, p);
    const lr_json_node *part = find_part(p, "normalizer", &at);
    if (status == LR_OK && part != NULL)
        status = lr_normalizer_load(&t->normalizer, &(lr_place){at, "normalizer", 0}, part);
    part = find_part(p, "pre_tokenizer", &at);
    if (status == LR_OK && part != NULL)
        status = lr_pretokenizer_load(&t->pretokenizer, &(lr_place){at, "pre_tokenizer", 0}, part);
    if (status == LR_OK)
        status = load_model(t, &p->file_at, p->file);
    part = find_part(p, "post_processor", &at);
    if (status == LR_OK && part != NULL)
        status = lr_postprocessor_load(&t->postprocessor, &(lr_place){at, "post_processor", 0}, part);
    return status == LR_OK ? load_added(t, p) : status;
}

static int load_file(lr_tokenizer *t)
{
    char *text = NULL;
    int64_t size = 0;
    lr_json *doc = NULL;
    int status = lr_file_read(t->path, &text, &size);
    if (status == LR_OK)
        status = lr_json_parse(&doc, text, size, t->path);
    lr_free(text);
    if (status != LR_OK)
        return status;
    status = load_parts(t, &(parts){lr_json_root(doc), NULL, {NULL, t->path, 0}, {0}});
    lr_json_free(doc);
    return status;
}

/* The tokenizer.json for `path`, which is that file or its folder. */
static int find_file(char **out, const char *path)
{
    lr_stat info;
    int status = lr_file_stat(path, &info);
    if (status != LR_OK)
        return status;
    *out = info.kind == LR_FILE_DIRECTORY ? lr_format("%s/tokenizer.json", path) : lr_strdup(path);
    if (*out == NULL)
        return LR_ENOMEM;
    status = info.kind == LR_FILE_DIRECTORY ? lr_file_stat(*out, &info) : LR_OK;
    if (status == LR_ENOTFOUND)
        return lr_fail(status,
                       "the folder %s has no tokenizer.json; transformers' AutoTokenizer.from_pretrained(folder)"
                       ".save_pretrained(folder) writes one",
                       path);
    return status;
}

static int new_tokenizer(lr_tokenizer **out)
{
    lr_unicode_init();
    lr_tokenizer *t = lr_calloc(1, sizeof *t);
    if (t == NULL)
        return LR_ENOMEM;
    const int status = lr_encoder_pool_new(&t->pool);
    if (status != LR_OK)
        lr_tokenizer_free(t);
    else
        *out = t;
    return status;
}

/* Returns the tokenizer in *out, or frees it if it could not be loaded. */
static int finish(lr_tokenizer **out, lr_tokenizer *t, int status)
{
    if (status == LR_OK)
        *out = t;
    else
        lr_tokenizer_free(t);
    return status;
}

int lr_tokenizer_load(lr_tokenizer **out, const char *path)
{
    lr_tokenizer *t;
    if (out == NULL || path == NULL)
        return lr_fail(LR_EINVAL, "lr_tokenizer_load: out or path is NULL");
    int status = new_tokenizer(&t);
    if (status != LR_OK)
        return status;
    status = find_file(&t->path, path);
    return finish(out, t, status == LR_OK ? load_file(t) : status);
}

int lr_tokenizer_load_changed(lr_tokenizer **out, const lr_json *file, const char *path, const lr_json *changes,
                              const char *changes_name)
{
    lr_tokenizer *t;
    if (out == NULL || file == NULL || path == NULL || changes == NULL || changes_name == NULL)
        return lr_fail(LR_EINVAL, "lr_tokenizer_load_changed: an argument is NULL");
    const int status = new_tokenizer(&t);
    if (status != LR_OK)
        return status;
    t->path = lr_strdup(path);
    const parts all = {lr_json_root(file), lr_json_root(changes), {NULL, t->path, 0}, {NULL, changes_name, 0}};
    return finish(out, t, t->path == NULL ? LR_ENOMEM : load_parts(t, &all));
}

void lr_tokenizer_free(lr_tokenizer *t)
{
    if (t == NULL)
        return;
    lr_encoder_pool_free(t->pool);
    lr_normalizer_free(&t->normalizer);
    lr_pretokenizer_free(&t->pretokenizer);
    lr_postprocessor_free(&t->postprocessor);
    lr_added_free(&t->added);
    if (t->model_data != NULL)
        t->model->free(t->model_data);
    lr_free(t->model_data);
    lr_vocab_free(&t->vocab);
    lr_free(t->path);
    lr_free(t);
}

/* ---- tokens --------------------------------------------------------------------------------------------------------- */
int64_t lr_tokenizer_vocab_size(const lr_tokenizer *t)
{
    return lr_max64((int64_t)t->vocab.id_count, (int64_t)t->added.vocab.id_count);
}

int32_t lr_tokenizer_id(const lr_tokenizer *t, const char *token)
{
    const int32_t id = lr_vocab_get(&t->added.vocab, token, strlen(token));
    return id >= 0 ? id : lr_vocab_get(&t->vocab, token, strlen(token));
}

const char *lr_tokenizer_token(const lr_tokenizer *t, int32_t id)
{
    const char *token = lr_vocab_token(&t->added.vocab, id);
    return token != NULL ? token : lr_vocab_token(&t->vocab, id);
}

int64_t lr_tokenizer_file_max_length(const lr_tokenizer *t)
{
    return t->file_max_length;
}

/* ---- encoding ------------------------------------------------------------------------------------------------------- */
/* Write to ids, `used` of which are taken, as many as there is room for. Returns how many would be taken with room for all. */
static size_t append(int32_t *ids, size_t cap, size_t used, const int32_t *from, size_t count)
{
    const size_t room = used < cap ? cap - used : 0, n = count < room ? count : room;
    if (n > 0)
        memcpy(ids + used, from, n * sizeof ids[0]);
    return used + count;
}

int lr_tokenizer_encode(const lr_tokenizer *t, const char *text, int64_t size, int add_special_tokens,
                        int64_t max_length, int32_t *ids, int64_t cap, int64_t *count)
{
    const lr_postprocessor *around = &t->postprocessor;
    const size_t special = add_special_tokens ? around->before.count + around->after.count : 0;
    bool ascii;
    if (size < 0 || cap < 0 || max_length < 0)
        return lr_fail(LR_EINVAL, "size is %lld, cap %lld, max_length %lld: none may be negative", (long long)size,
                       (long long)cap, (long long)max_length);
    if (max_length > 0 && (size_t)max_length < special)
        return lr_fail(LR_EINVAL, "max_length is %lld, but the special tokens of %s alone are %zu",
                       (long long)max_length, t->path, special);
    const size_t valid = lr_utf8_check(text, (size_t)size, &ascii);
    if (valid < (size_t)size)
        return lr_fail(LR_EINVAL, "the text is not valid UTF-8 at byte %zu (0x%02X)", valid,
                       (unsigned char)text[valid]);
    lr_encoder *e;
    int status = lr_encoder_take(&e, t);
    if (status != LR_OK)
        return status;
    const size_t wanted = max_length > 0 ? (size_t)max_length - special : SIZE_MAX;
    e->limit = t->truncate_left ? SIZE_MAX : wanted; /* the last ids are known only when all are */
    status = lr_encoder_text(e, text, (size_t)size);
    if (status == LR_OK) {
        size_t used = 0;
        const size_t first = e->ids.count > wanted ? e->ids.count - wanted : 0;
        if (add_special_tokens)
            used = append(ids, (size_t)cap, used, around->before.data, around->before.count);
        if (e->ids.count > first)
            used = append(ids, (size_t)cap, used, e->ids.data + first, e->ids.count - first);
        if (add_special_tokens)
            used = append(ids, (size_t)cap, used, around->after.data, around->after.count);
        *count = (int64_t)used;
    }
    lr_encoder_give(e);
    return status;
}
