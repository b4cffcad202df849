// SPDX-License-Identifier: GPL-2.0-only
/*
 * The name space of the container `kernel`: devices by name and by minor number.
 *
 * A name and its number are taken from before the node is made until after it is gone.
 */
#include <linux/idr.h>

#include "internal.h"

static unsigned int default_mode = 0666;
module_param_named(mode, default_mode, uint, 0644);
MODULE_PARM_DESC(mode, "permission bits of devices whose provider says nothing of them (default 0666)");
static unsigned int default_uid;
module_param_named(uid, default_uid, uint, 0644);
MODULE_PARM_DESC(uid, "their owner (default 0)");
static unsigned int default_gid;
module_param_named(gid, default_gid, uint, 0644);
MODULE_PARM_DESC(gid, "their group (default 0)");

DEFINE_MUTEX(ldm_registry_lock);	/* of the next two, and of each device's state and consumers */
static DEFINE_IDR(devices);		/* by minor number */
static u64 last_serial;
static DECLARE_WAIT_QUEUE_HEAD(started);

static int check_name(const char *name)
{
	size_t size = name ? strnlen(name, LDM_MAX_NAME + 1) : 0;

	if (size > LDM_MAX_NAME)
		return -ENAMETOOLONG;
	if (!size || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EINVAL;
	return 0;
}

/* Makes the strings of a specification copies that the device keeps. */
static int copy_strings(struct ldm_device *device)
{
	const char **texts[] = {
		&device->spec.name, &device->spec.description, &device->spec.takes, &device->spec.gives,
		&device->provider_name,
	};
	size_t size = 0, place;
	char *end;

	for (place = 0; place < ARRAY_SIZE(texts); place++)
		size += strlen(*texts[place] ?: "") + 1;
	device->strings = kmalloc(size, GFP_KERNEL);
	if (!device->strings)
		return -ENOMEM;
	end = device->strings;
	for (place = 0; place < ARRAY_SIZE(texts); place++) {
		const char *text = *texts[place] ?: "";

		size = strlen(text) + 1;
		*texts[place] = memcpy(end, text, size);
		end += size;
	}
	return 0;
}

static struct ldm_device *alloc_device(struct ldm_provider *provider, const struct ldm_device_spec *spec)
{
	struct ldm_device *device = kzalloc(sizeof(*device), GFP_KERNEL);

	if (!device)
		return ERR_PTR(-ENOMEM);
	device->provider = provider;
	device->module = provider->module;
	device->provider_name = provider->name;
	device->spec = *spec;
	if (!spec->kind)
		device->spec.kind = LDM_MESSAGE;
	if (!spec->mode) {
		device->spec.mode = default_mode;
		device->spec.uid = default_uid;
		device->spec.gid = default_gid;
	}
	device->spec.mode &= 0777;
	if (copy_strings(device)) {
		kfree(device);
		return ERR_PTR(-ENOMEM);
	}
	ldm_node_init(device);
	return device;
}

static struct ldm_device *find(const char *name)
{
	struct ldm_device *device;
	int minor;

	lockdep_assert_held(&ldm_registry_lock);
	idr_for_each_entry(&devices, device, minor)
		if (!strcmp(device->spec.name, name))
			return device;
	return NULL;
}

/* Takes the name and a number. */
static int enter(struct ldm_device *device)
{
	int minor;

	mutex_lock(&ldm_registry_lock);
	minor = find(device->spec.name) ? -EEXIST : idr_alloc(&devices, device, 0, LDM_MAX_DEVICES, GFP_KERNEL);
	device->minor = minor;
	device->serial = ++last_serial;
	device->state = device->provider->started ? LDM_DEVICE_LIVE : LDM_DEVICE_STARTING;
	mutex_unlock(&ldm_registry_lock);
	return min(minor, 0);
}

static void leave(struct ldm_device *device)
{
	mutex_lock(&ldm_registry_lock);
	idr_remove(&devices, device->minor);
	mutex_unlock(&ldm_registry_lock);
}

static void set_state(struct ldm_device *device, enum ldm_device_state state)
{
	mutex_lock(&ldm_registry_lock);
	device->state = state;
	mutex_unlock(&ldm_registry_lock);
	wake_up_all(&started);
}

int ldm_create_device(struct ldm_provider *provider, const struct ldm_device_spec *spec, struct ldm_device **created)
{
	struct ldm_device *device;
	int status = check_name(spec->name);

	if (status)
		return status;
	if (!spec->request || spec->kind > LDM_BLOCK || (spec->kind == LDM_BLOCK && spec->size > S64_MAX))
		return -EINVAL;
	device = alloc_device(provider, spec);
	if (IS_ERR(device))
		return PTR_ERR(device);
	if (created)
		*created = device;
	status = enter(device);
	if (status)
		goto put;
	status = ldm_node_add(device);
	if (!status)
		return 0;
	set_state(device, LDM_DEVICE_GONE);
	leave(device);
put:
	if (created)
		*created = NULL;
	put_device(&device->dev);
	return status;
}
EXPORT_SYMBOL_GPL(ldm_create_device);

/* Of a device whose state is LDM_DEVICE_GONE. */
static void destroy(struct ldm_device *device)
{
	wake_up_all(&started);
	device_del(&device->dev);
	ldm_forget_kept(device);
	leave(device);
	put_device(&device->dev);
}

int ldm_destroy_device(struct ldm_device *device)
{
	bool busy;

	mutex_lock(&ldm_registry_lock);
	busy = device->consumers;
	if (!busy)
		device->state = LDM_DEVICE_GONE;
	mutex_unlock(&ldm_registry_lock);
	if (busy)
		return -EBUSY;
	destroy(device);
	return 0;
}
EXPORT_SYMBOL_GPL(ldm_destroy_device);

static struct ldm_device *next_of(struct ldm_provider *provider)
{
	struct ldm_device *device, *found = NULL;
	int minor;

	mutex_lock(&ldm_registry_lock);
	idr_for_each_entry(&devices, device, minor)
		if (device->provider == provider)
			found = device;
	if (found)
		found->state = LDM_DEVICE_GONE;
	mutex_unlock(&ldm_registry_lock);
	return found;
}

/* Destroys what a provider has: its module is not in use any more, or never was, so that nobody has a device open. */
void ldm_devices_destroy(struct ldm_provider *provider)
{
	struct ldm_device *device;

	while ((device = next_of(provider)))
		destroy(device);
}

/* The provider has started: lets consumers in. */
void ldm_devices_release(struct ldm_provider *provider)
{
	struct ldm_device *device;
	int minor;

	mutex_lock(&ldm_registry_lock);
	provider->started = true;
	idr_for_each_entry(&devices, device, minor)
		if (device->provider == provider)
			device->state = LDM_DEVICE_LIVE;
	mutex_unlock(&ldm_registry_lock);
	wake_up_all(&started);
}

/* Returns the device with a reference, once its provider has started, or an error. */
struct ldm_device *ldm_device_by_minor(int minor)
{
	struct ldm_device *device;

	mutex_lock(&ldm_registry_lock);
	device = idr_find(&devices, minor);
	if (device)
		get_device(&device->dev);
	mutex_unlock(&ldm_registry_lock);
	if (!device)
		return ERR_PTR(-ENXIO);
	if (wait_event_killable(started, READ_ONCE(device->state) != LDM_DEVICE_STARTING)) {
		put_device(&device->dev);
		return ERR_PTR(-EINTR);
	}
	return device;
}

struct ldm_device *ldm_device_by_name(const char *name)
{
	struct ldm_device *device;

	mutex_lock(&ldm_registry_lock);
	device = find(name);
	if (device && device->state == LDM_DEVICE_LIVE)
		get_device(&device->dev);
	else
		device = ERR_PTR(-ENOENT);
	mutex_unlock(&ldm_registry_lock);
	return device;
}

/* Keeps a device that the caller has a reference to, and its module, until ldm_device_unuse(). */
int ldm_device_use(struct ldm_device *device)
{
	int status = 0;

	mutex_lock(&ldm_registry_lock);
	if (device->state != LDM_DEVICE_LIVE || !try_module_get(device->module))
		status = -ENOENT;
	else
		device->consumers++;
	mutex_unlock(&ldm_registry_lock);
	if (!status)
		get_device(&device->dev);
	return status;
}

void ldm_device_unuse(struct ldm_device *device)
{
	struct module *module = device->module;

	mutex_lock(&ldm_registry_lock);
	device->consumers--;
	mutex_unlock(&ldm_registry_lock);
	put_device(&device->dev);
	module_put(module);
}

u32 ldm_device_accepts(const struct ldm_device *device)
{
	const u32 message = BIT(LDM_READ) | BIT(LDM_CALL) | BIT(LDM_FLUSH) | BIT(LDM_NON_STANDARD);
	const u32 block = BIT(LDM_READ) | BIT(LDM_WRITE) | BIT(LDM_FLUSH) | BIT(LDM_TRIM);

	return device->spec.accepts ?: device->spec.kind == LDM_BLOCK ? block : message;
}

void ldm_devices_exit(void)
{
	idr_destroy(&devices);
}
