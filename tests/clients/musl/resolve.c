/* Asks the C library for a name's addresses, one a line. Linked against musl: its resolver asks all
 * of its servers at once over one unconnected socket and checks where each answer comes from. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: resolve NAME\n");
        return 2;
    }
    struct addrinfo hints, *list;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int error = getaddrinfo(argv[1], NULL, &hints, &list);
    if (error) {
        fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
        return 1;
    }
    for (struct addrinfo *entry = list; entry; entry = entry->ai_next) {
        char text[INET6_ADDRSTRLEN];
        const void *address = entry->ai_family == AF_INET
            ? (const void *)&((struct sockaddr_in *)entry->ai_addr)->sin_addr
            : (const void *)&((struct sockaddr_in6 *)entry->ai_addr)->sin6_addr;
        if (!inet_ntop(entry->ai_family, address, text, sizeof text)) {
            perror("inet_ntop");
            return 1;
        }
        puts(text);
    }
    freeaddrinfo(list);
    return 0;
}
