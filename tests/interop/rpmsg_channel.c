/* rpmsg_channel create|release NAME SRC DST: a channel by way of /dev/rpmsg_ctrl0, for a guest. */
#include <fcntl.h>
#include <linux/rpmsg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    struct rpmsg_endpoint_info info = {0};
    int fd;

    if (argc != 5)
        return 2;
    strncpy(info.name, argv[2], sizeof info.name - 1);
    info.src = strtoul(argv[3], NULL, 0);
    info.dst = strtoul(argv[4], NULL, 0);
    fd = open("/dev/rpmsg_ctrl0", O_RDWR);
    if (fd < 0) {
        perror("/dev/rpmsg_ctrl0");
        return 1;
    }
    if (ioctl(fd, strcmp(argv[1], "create") ? RPMSG_RELEASE_DEV_IOCTL : RPMSG_CREATE_DEV_IOCTL,
              &info)) {
        perror(argv[1]);
        return 1;
    }
    return 0;
}
