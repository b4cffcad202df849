// SPDX-License-Identifier: GPL-2.0-only
/* The nodes of devices: /dev/ldm/kernel/<device>, made by devtmpfs, and what /sys/class/ldm/ tells of them. */
#include <linux/uidgid.h>

#include "compat.h"
#include "internal.h"

static struct class *class;
static struct cdev *cdev;
static dev_t first_number;

static char *devnode(LDM_DEVNODE_DEVICE *dev, umode_t *mode, kuid_t *uid, kgid_t *gid)
{
	const struct ldm_device *device = container_of(dev, const struct ldm_device, dev);

	if (mode)	/* none of the three when the node is taken away */
		*mode = device->spec.mode;
	if (uid)
		*uid = KUIDT_INIT(device->spec.uid);
	if (gid)
		*gid = KGIDT_INIT(device->spec.gid);
	return kasprintf(GFP_KERNEL, "ldm/kernel/%s", device->spec.name);
}

static void release(struct device *dev)
{
	struct ldm_device *device = container_of(dev, struct ldm_device, dev);

	kfree(device->strings);
	kfree(device);
}

/* The kinds, as uevents tell them (DEVTYPE). */
static const struct device_type types[] = {
	[LDM_MESSAGE] = { .name = "message", .devnode = devnode, .release = release },
	[LDM_BLOCK] = { .name = "block", .devnode = devnode, .release = release },
};

/* From here on the device's memory is put_device()'s to free. */
void ldm_node_init(struct ldm_device *device)
{
	device_initialize(&device->dev);
	device->dev.class = class;
	device->dev.type = &types[device->spec.kind];
	device->dev.groups = ldm_device_groups;
}

int ldm_node_add(struct ldm_device *device)
{
	int status = dev_set_name(&device->dev, "%s", device->spec.name);

	device->dev.devt = MKDEV(MAJOR(first_number), device->minor);
	return status ? status : device_add(&device->dev);
}

static int add_cdev(void)
{
	int status = alloc_chrdev_region(&first_number, 0, LDM_MAX_DEVICES, "ldm");

	if (status)
		return status;
	cdev = cdev_alloc();
	status = cdev ? 0 : -ENOMEM;
	if (!status) {
		cdev->owner = THIS_MODULE;
		cdev->ops = &ldm_fops;
		status = cdev_add(cdev, first_number, LDM_MAX_DEVICES);
		if (status)
			kobject_put(&cdev->kobj);
	}
	if (status)
		unregister_chrdev_region(first_number, LDM_MAX_DEVICES);
	return status;
}

int ldm_nodes_init(void)
{
	int status;

	class = ldm_class_create("ldm");
	if (IS_ERR(class))
		return PTR_ERR(class);
	status = add_cdev();
	if (status)
		class_destroy(class);
	return status;
}

void ldm_nodes_exit(void)
{
	cdev_del(cdev);
	unregister_chrdev_region(first_number, LDM_MAX_DEVICES);
	class_destroy(class);
}
