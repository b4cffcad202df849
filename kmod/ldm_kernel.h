/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What ldm.h stands on in the kernel: entry and exit of a module, its parameters, logging, memory, locks, timers. */
#ifndef LDM_KERNEL_H
#define LDM_KERNEL_H

#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct ldm_provider {
	const char *name;
	int (*start)(struct ldm_provider *provider);
	void (*stop)(struct ldm_provider *provider);
	void *context;			/* the provider's own */
	struct module *module;
	bool started;
};

int ldm_start_provider(struct ldm_provider *provider);
void ldm_stop_provider(struct ldm_provider *provider);

/*
 * LDM_PROVIDER(name, start, stop, description): what the module is.
 * `start` creates devices and returns a status; when it fails, those that it created are destroyed and nothing is
 * loaded. `stop`, which may be NULL, ends what the provider runs by itself, when no device of it is open any more.
 */
#define LDM_PROVIDER(id, start_handler, stop_handler, about)		\
	static struct ldm_provider ldm_provider_##id = {		\
		.name = #id,						\
		.start = start_handler,					\
		.stop = stop_handler,					\
		.module = THIS_MODULE,					\
	};								\
	static int __init ldm_provider_init(void)			\
	{								\
		return ldm_start_provider(&ldm_provider_##id);		\
	}								\
	static void __exit ldm_provider_exit(void)			\
	{								\
		ldm_stop_provider(&ldm_provider_##id);			\
	}								\
	module_init(ldm_provider_init);					\
	module_exit(ldm_provider_exit);					\
	MODULE_DESCRIPTION(about);					\
	MODULE_LICENSE("GPL")

/*
 * LDM_PARAM(variable, type, description): a static variable that is set before `start`.
 * Types: bool (bool), uint (unsigned int), size (uint64_t, in bytes, with K, M, G), string (const char *).
 */
#define LDM_PARAM(variable, type, about)				\
	module_param_named(variable, variable, ldm_##type, 0444);	\
	MODULE_PARM_DESC(variable, about)

#define param_ops_ldm_bool	param_ops_bool
#define param_check_ldm_bool	param_check_bool
#define param_ops_ldm_uint	param_ops_uint
#define param_check_ldm_uint	param_check_uint
#define param_ops_ldm_string	param_ops_charp
#define param_check_ldm_string(name, p) __param_check(name, p, const char *)
extern const struct kernel_param_ops param_ops_ldm_size;
#define param_check_ldm_size(name, p) __param_check(name, p, uint64_t)

/* One line each, without a line end. */
#define ldm_error(format, ...) pr_err(KBUILD_MODNAME ": " format "\n", ##__VA_ARGS__)
#define ldm_warn(format, ...) pr_warn(KBUILD_MODNAME ": " format "\n", ##__VA_ARGS__)
#define ldm_info(format, ...) pr_info(KBUILD_MODNAME ": " format "\n", ##__VA_ARGS__)

/* Memory that is all zero, NULL when there is none. */
static inline void *ldm_alloc(size_t size)
{
	return size > INT_MAX ? NULL : kvzalloc(size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
}

static inline void ldm_free(const void *memory)
{
	kvfree(memory);
}

/* A lock that its holder may sleep under. */
struct ldm_mutex {
	struct mutex mutex;	/* of what the provider says */
};

#define ldm_init_mutex(lock) mutex_init(&(lock)->mutex)

static inline void ldm_lock(struct ldm_mutex *lock)
{
	mutex_lock(&lock->mutex);
}

static inline void ldm_unlock(struct ldm_mutex *lock)
{
	mutex_unlock(&lock->mutex);
}

/* Calls a function once, some time after it was started, in a thread that may sleep. */
struct ldm_timer {
	struct delayed_work work;
	void (*function)(void *context);
	void *context;
};

void ldm_init_timer(struct ldm_timer *timer, void (*function)(void *context), void *context);
void ldm_start_timer(struct ldm_timer *timer, unsigned int milliseconds);	/* once more: from now on */
void ldm_stop_timer(struct ldm_timer *timer);	/* waits for the function; neither under its locks nor in itself */

static inline uint64_t ldm_now_ms(void)
{
	return ktime_get_ns() / NSEC_PER_MSEC;
}

#endif
