"""With this folder on PYTHONPATH, a process and its children note and refuse every use of a network."""

import os
import socket
import sys

NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
MESSAGES = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def refuse(event, arguments):
    if event in NAMES or (event in MESSAGES and arguments[0].family != socket.AF_UNIX):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{sys.orig_argv}: {event} {arguments[1:] or arguments}\n")
        raise OSError(f"{event}: there is no network in this test")


sys.addaudithook(refuse)
