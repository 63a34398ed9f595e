// Says whether Go's standard library would use the proxy of its environment for a URL.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	request, err := http.NewRequest(http.MethodGet, os.Args[1], nil)
	if err != nil {
		fmt.Println("unreadable:", err)
		os.Exit(1)
	}
	proxy, err := http.ProxyFromEnvironment(request)
	switch {
	case err != nil:
		fmt.Println("unreadable:", err)
		os.Exit(1)
	case proxy == nil:
		fmt.Println("direct")
	default:
		fmt.Println("proxy")
	}
}
