// SPDX-License-Identifier: GPL-2.0-only
/* What a provider's module calls beside requests: its start and stop, sizes as parameters, timers. */
#include "internal.h"

int ldm_start_provider(struct ldm_provider *provider)
{
	int status = provider->start(provider);

	if (status) {
		ldm_error("provider %s did not start: error %d", provider->name, -status);
		ldm_devices_destroy(provider);
		return status < 0 ? status : -EIO;
	}
	ldm_devices_release(provider);
	return 0;
}
EXPORT_SYMBOL_GPL(ldm_start_provider);

void ldm_stop_provider(struct ldm_provider *provider)
{
	if (provider->stop)
		provider->stop(provider);
	ldm_devices_destroy(provider);
}
EXPORT_SYMBOL_GPL(ldm_stop_provider);

static int set_size(const char *text, const struct kernel_param *param)
{
	char *end;
	u64 size = memparse(text, &end);

	if (end == text || (*end && *end != '\n'))
		return -EINVAL;
	*(u64 *)param->arg = size;
	return 0;
}

static int get_size(char *page, const struct kernel_param *param)
{
	return sysfs_emit(page, "%llu\n", *(u64 *)param->arg);
}

const struct kernel_param_ops param_ops_ldm_size = { .set = set_size, .get = get_size };
EXPORT_SYMBOL_GPL(param_ops_ldm_size);

static void run_timer(struct work_struct *work)
{
	struct ldm_timer *timer = container_of(to_delayed_work(work), struct ldm_timer, work);

	timer->function(timer->context);
}

void ldm_init_timer(struct ldm_timer *timer, void (*function)(void *context), void *context)
{
	INIT_DELAYED_WORK(&timer->work, run_timer);
	timer->function = function;
	timer->context = context;
}
EXPORT_SYMBOL_GPL(ldm_init_timer);

void ldm_start_timer(struct ldm_timer *timer, unsigned int milliseconds)
{
	mod_delayed_work(ldm_workqueue, &timer->work, msecs_to_jiffies(milliseconds));
}
EXPORT_SYMBOL_GPL(ldm_start_timer);

void ldm_stop_timer(struct ldm_timer *timer)
{
	cancel_delayed_work_sync(&timer->work);
}
EXPORT_SYMBOL_GPL(ldm_stop_timer);
