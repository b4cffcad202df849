// SPDX-License-Identifier: GPL-2.0-only
/* Attributes of devices, /sys/class/ldm/<device>/: what the extended attributes user.ldm.* tell elsewhere. */
#include <linux/sysfs.h>

#include "internal.h"

static const struct ldm_device *device_of(struct device *dev)
{
	return container_of(dev, struct ldm_device, dev);
}

#define ATTRIBUTE(name, format, value)							\
	static ssize_t name##_show(struct device *dev, struct device_attribute *attribute, char *page) \
	{										\
		const struct ldm_device *device = device_of(dev);			\
											\
		return sysfs_emit(page, format "\n", value);				\
	}										\
	static DEVICE_ATTR_RO(name)

ATTRIBUTE(container, "%s", device ? "kernel" : "");
ATTRIBUTE(provider, "%s", device->provider_name);
ATTRIBUTE(kind, "%s", device->spec.kind == LDM_BLOCK ? "block" : "message");
ATTRIBUTE(description, "%s", device->spec.description);
ATTRIBUTE(takes, "%s", device->spec.takes);
ATTRIBUTE(gives, "%s", device->spec.gives);
ATTRIBUTE(size, "%llu", device->spec.size);
ATTRIBUTE(consumers, "%u", READ_ONCE(device->consumers));

static struct attribute *attributes[] = {
	&dev_attr_container.attr,
	&dev_attr_provider.attr,
	&dev_attr_kind.attr,
	&dev_attr_description.attr,
	&dev_attr_takes.attr,
	&dev_attr_gives.attr,
	&dev_attr_size.attr,
	&dev_attr_consumers.attr,
	NULL,
};

static const struct attribute_group group = { .attrs = attributes };
const struct attribute_group *ldm_device_groups[] = { &group, NULL };
