/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between the kernels from 6.1 to 6.18, and nowhere else. */
#ifndef LDM_COMPAT_H
#define LDM_COMPAT_H

#include <linux/device.h>
#include <linux/version.h>

static inline struct class *ldm_class_create(const char *name)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return class_create(name);
#else
	return class_create(THIS_MODULE, name);
#endif
}

/* What the `devnode` callback of a device type gets. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define LDM_DEVNODE_DEVICE const struct device
#else
#define LDM_DEVNODE_DEVICE struct device
#endif

#endif
