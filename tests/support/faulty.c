/* A PKCS#11 module that passes everything on to the module named by FAULTY_MODULE, but for the one
 * fault named by FAULTY_FAULT, and notes each C_Login as a line in the file named by FAULTY_LOGINS.
 *
 *   none          nothing
 *   hang          C_Initialize never returns
 *   final-try     every token says that one try of the user PIN is left
 *   locked        every token says that its user PIN is locked
 *   appended      GCM ignores the caller's IV and appends its own to the ciphertext (Luna, FIPS mode)
 *   written-back  GCM wants an IV of zeros and writes its own over it (AWS CloudHSM)
 *   deaf          GCM ignores the additional data: a wrap opens under any context
 *   extractable   keys are made extractable, whatever the template says
 *   dies          once FAULTY_TRIGGER exists, decryption fails with CKR_DEVICE_REMOVED until C_Initialize
 *   poisoned      once FAULTY_TRIGGER exists, the next session to decrypt has an operation active for ever
 *   no-gcm        C_EncryptInit knows no GCM
 *   no-hmac       C_SignInit knows no HMAC
 *   no-mac        C_SignInit knows neither HMAC nor CMAC
 *
 * PKCS#11 2.40, as far as needed here, so that no header of it has to be installed. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

typedef unsigned long ulong;
typedef struct { ulong type; void *value; ulong len; } attribute;
typedef struct { ulong type; void *parameter; ulong len; } mechanism;
typedef struct { unsigned char *iv; ulong iv_len, iv_bits; unsigned char *aad; ulong aad_len, tag_bits; } gcm;
/* CK_FUNCTION_LIST: a version of two bytes, then 68 pointers. */
typedef struct { unsigned char version[2]; void *function[68]; } functions;
/* CK_TOKEN_INFO up to its flags. */
typedef struct { unsigned char label[32], manufacturer[32], model[16], serial[16]; ulong flags; } token_info;

enum {
    INITIALIZE = 0, GET_TOKEN_INFO = 6, LOGIN = 18, ENCRYPT_INIT = 29, ENCRYPT = 30, DECRYPT_INIT = 33, SIGN_INIT = 42,
    GENERATE_KEY = 58
};
#define CKM_SHA256_HMAC 0x251ul
#define CKM_AES_GCM 0x1087ul
#define CKM_AES_CMAC 0x108Aul
#define CKA_SENSITIVE 0x103ul
#define CKA_EXTRACTABLE 0x162ul
#define CKR_DEVICE_REMOVED 0x32ul
#define CKR_OPERATION_ACTIVE 0x90ul
#define CKR_MECHANISM_INVALID 0x70ul
#define CKR_MECHANISM_PARAM_INVALID 0x71ul
#define CKR_LIBRARY_LOAD_FAILED 0x1B7ul

static functions real, ours;
static const char *fault = "none";
static ulong poisoned;
/* One operation at a time is enough: a trial key is used by one session. */
static __thread unsigned char appended[12];
static __thread int appending;

static int is(const char *name) { return strcmp(fault, name) == 0; }

static int triggered(void) { return getenv("FAULTY_TRIGGER") && access(getenv("FAULTY_TRIGGER"), F_OK) == 0; }

static ulong initialize(void *arguments)
{
    while (is("hang"))
        pause();
    if (is("dies") && triggered())
        unlink(getenv("FAULTY_TRIGGER"));
    return ((ulong (*)(void *))real.function[INITIALIZE])(arguments);
}

static ulong get_token_info(ulong slot, token_info *info)
{
    ulong rv = ((ulong (*)(ulong, token_info *))real.function[GET_TOKEN_INFO])(slot, info);
    if (rv == 0 && is("final-try"))
        info->flags |= 0x20000ul;
    if (rv == 0 && is("locked"))
        info->flags |= 0x40000ul;
    return rv;
}

static ulong login(ulong session, ulong user, unsigned char *pin, ulong len)
{
    const char *log = getenv("FAULTY_LOGINS");
    int file = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file >= 0) {
        if (write(file, "login\n", 6) != 6)
            abort();
        close(file);
    }
    return ((ulong (*)(ulong, ulong, unsigned char *, ulong))real.function[LOGIN])(session, user, pin, len);
}

static ulong encrypt_init(ulong session, mechanism *how, ulong key)
{
    ulong (*next)(ulong, mechanism *, ulong) = (ulong (*)(ulong, mechanism *, ulong))real.function[ENCRYPT_INIT];
    appending = 0;
    if (how->type != CKM_AES_GCM)
        return next(session, how, key);
    gcm parameters = *(gcm *)how->parameter;
    mechanism changed = { how->type, &parameters, sizeof parameters };
    if (is("no-gcm"))
        return CKR_MECHANISM_INVALID;
    if (is("deaf"))
        parameters.aad_len = 0;
    if (is("written-back")) {
        for (ulong i = 0; i < parameters.iv_len; i++)
            if (parameters.iv[i] != 0)
                return CKR_MECHANISM_PARAM_INVALID;
        if (getrandom(parameters.iv, parameters.iv_len, 0) < 0)
            abort();
    }
    if (is("appended")) {
        if (getrandom(appended, sizeof appended, 0) < 0)
            abort();
        parameters.iv = appended;
        appending = 1;
    }
    return next(session, &changed, key);
}

static ulong encrypt(ulong session, unsigned char *data, ulong len, unsigned char *out, ulong *out_len)
{
    typedef ulong (*encrypt_fn)(ulong, unsigned char *, ulong, unsigned char *, ulong *);
    ulong rv = ((encrypt_fn)real.function[ENCRYPT])(session, data, len, out, out_len);
    if (rv == 0 && appending) {
        if (out)
            memcpy(out + *out_len, appended, sizeof appended);
        *out_len += sizeof appended;
    }
    return rv;
}

static ulong decrypt_init(ulong session, mechanism *how, ulong key)
{
    ulong (*next)(ulong, mechanism *, ulong) = (ulong (*)(ulong, mechanism *, ulong))real.function[DECRYPT_INIT];
    if (is("dies") && triggered())
        return CKR_DEVICE_REMOVED;
    if (is("poisoned") && triggered()) {
        unlink(getenv("FAULTY_TRIGGER"));
        poisoned = session;
    }
    if (poisoned != 0 && poisoned == session)
        return CKR_OPERATION_ACTIVE;
    if (how->type != CKM_AES_GCM || !is("deaf"))
        return next(session, how, key);
    gcm parameters = *(gcm *)how->parameter;
    parameters.aad_len = 0;
    mechanism changed = { how->type, &parameters, sizeof parameters };
    return next(session, &changed, key);
}

static ulong sign_init(ulong session, mechanism *how, ulong key)
{
    if (how->type == CKM_SHA256_HMAC && (is("no-hmac") || is("no-mac")))
        return CKR_MECHANISM_INVALID;
    if (how->type == CKM_AES_CMAC && is("no-mac"))
        return CKR_MECHANISM_INVALID;
    return ((ulong (*)(ulong, mechanism *, ulong))real.function[SIGN_INIT])(session, how, key);
}

static ulong generate_key(ulong session, mechanism *how, attribute *template, ulong count, ulong *key)
{
    static const unsigned char yes = 1, no = 0;
    for (ulong i = 0; is("extractable") && i < count; i++) {
        if (template[i].type == CKA_EXTRACTABLE)
            template[i].value = (void *)&yes;
        if (template[i].type == CKA_SENSITIVE)
            template[i].value = (void *)&no;
    }
    return ((ulong (*)(ulong, mechanism *, attribute *, ulong, ulong *))real.function[GENERATE_KEY])(
        session, how, template, count, key);
}

ulong C_GetFunctionList(functions **list)
{
    const char *path = getenv("FAULTY_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    ulong (*get)(functions **) = module ? (ulong (*)(functions **))dlsym(module, "C_GetFunctionList") : NULL;
    functions *found;
    if (!get || get(&found) != 0)
        return CKR_LIBRARY_LOAD_FAILED;
    if (getenv("FAULTY_FAULT"))
        fault = getenv("FAULTY_FAULT");
    real = *found;
    ours = real;
    ours.version[0] = 2;
    ours.version[1] = 40;
    ours.function[INITIALIZE] = (void *)initialize;
    ours.function[GET_TOKEN_INFO] = (void *)get_token_info;
    ours.function[LOGIN] = (void *)login;
    ours.function[ENCRYPT_INIT] = (void *)encrypt_init;
    ours.function[ENCRYPT] = (void *)encrypt;
    ours.function[DECRYPT_INIT] = (void *)decrypt_init;
    ours.function[SIGN_INIT] = (void *)sign_init;
    ours.function[GENERATE_KEY] = (void *)generate_key;
    *list = &ours;
    return 0;
}
