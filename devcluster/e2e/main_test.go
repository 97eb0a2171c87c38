package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// roleEnv makes the test's executable a pod's program.
const roleEnv = "DEVCLUSTER_E2E_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "server":
		serve()
	case "crash":
		fmt.Println("crashing")
		os.Exit(7)
	case "job":
		if _, err := os.Stat(os.Args[1]); err != nil { // what the init container was to make
			fmt.Println(err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// serve answers with the pod's name and what it finds under --data and --config, until it is told to end.
func serve() {
	data, config := os.Args[1], os.Args[2]
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		fmt.Println("told to end")
		os.Exit(0)
	}()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		content, _ := os.ReadFile(filepath.Join(config, "greeting"))
		fmt.Fprintf(w, "%s %s", os.Getenv("POD_NAME"), content)
	})
	f, err := os.OpenFile(filepath.Join(data, "starts"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getenv("POD_NAME"), time.Now())
	}
	if err == nil {
		err = http.ListenAndServe(os.Getenv("POD_IP")+":8080", nil)
	}
	fmt.Println(err)
	os.Exit(1)
}
